"""How each kind of probe runs on the teacher and on every Raptor, for the probes stage."""
