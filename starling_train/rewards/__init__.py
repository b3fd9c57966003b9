"""Where scores come from: a reward model of this process, or a served one; scores for a file; and our server."""
