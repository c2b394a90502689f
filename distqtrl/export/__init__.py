"""A policy file -> integers that are the same on every machine; needs no MPI and no quantum package."""
