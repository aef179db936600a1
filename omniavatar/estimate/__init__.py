"""What a run would cost, seen by rehearsing it: `Rehearsal(engine).estimate(request)`."""
