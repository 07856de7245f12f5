"""What every route has of HTTP: bodies, errors, streams, and who may ask."""
