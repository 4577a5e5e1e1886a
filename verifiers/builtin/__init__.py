"""The verifiers that come with the project, but for `math`: a file each."""
