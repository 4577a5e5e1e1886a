"""What runs in the sandbox's own processes: the mother that forks, the jail, and the roles a jailed child can play."""
