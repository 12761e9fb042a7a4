"""What happens on connections, told once to all who want to know."""
