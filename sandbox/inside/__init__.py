"""What runs in the sandbox's own processes: the fork server, the jail, and the roles of a jailed child."""
