"""From the text of a response to the answer that it gives, as an expression."""
