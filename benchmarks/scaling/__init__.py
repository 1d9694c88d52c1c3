"""Many workers on paper (`model`) and by simulation (`workers`, `cluster`, `users`): benchmarks.scale compares them."""
