"""The math answer checker: text -> answer (`extraction`) -> tree (`parser`) -> equal or not (`comparison`), as a verifier."""
