"""Methods of continual learning behind one Protocol, and the comparison of them on a stream of tasks."""
