"""How a running server changes: its listeners, reloads, and its own replacement by a newer one."""
