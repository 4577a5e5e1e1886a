"""The sandbox as a service: server, client, and several replicas behind one interface."""
