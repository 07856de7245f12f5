"""The HTTP server: a loaded model for programs that speak to one."""
