"""MONAI Label's server, hardened: answers while it infers, refuses bad requests with a reason, writes to one folder."""

from polycl.server.run import create_app, leave_server, run_server

__all__ = ["create_app", "leave_server", "run_server"]
