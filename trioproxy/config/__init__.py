"""The configuration file: its values, and how they are read from TOML. Pure."""
