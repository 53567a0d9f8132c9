"""The work of the scripts that make networks out of networks and models."""
