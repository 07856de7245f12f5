"""Expert bytes: the files they come from, the packed store on disk, the RAM they fill, and the pool that is asked for them."""
