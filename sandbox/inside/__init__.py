"""Code that runs in the sandbox's own processes: the fork server, the jail, and the roles of a jailed child.

Read in this order: wire.py (the protocol), fork_server.py, child.py, jail.py (the walls), then the roles (program.py,
split.py, checker.py, native.py).
"""
