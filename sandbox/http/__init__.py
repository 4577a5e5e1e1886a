"""The sandbox as a service (docs/sandbox_server.md): a server, and a client that uses one or more servers.

Server: server.py (routes), service.py, admission.py, prometheus.py, serve.py (command). Client: client.py, dispatch.py,
replica.py.
"""
