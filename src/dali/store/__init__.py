"""Expert bytes at rest: the packed store on disk, its builder and reader, and the RAM arena they fill."""
