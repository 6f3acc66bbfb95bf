"""Tasks that only the studies use, each with an entry point of the group "isobatch.tasks"."""
