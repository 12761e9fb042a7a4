"""An RFC 8555 client on Trio. It knows nothing of how certificates are kept or served."""
