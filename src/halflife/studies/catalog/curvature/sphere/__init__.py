"""Scale-invariant nets on a sphere."""
