"""`runtime-authz policy`: write, test, compare, release and explain policies."""
