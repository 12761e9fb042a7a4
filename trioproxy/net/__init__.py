"""Where Trio meets sockets. Only here are OSError and Trio's resource errors caught and translated."""
