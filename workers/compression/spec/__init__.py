"""What a checkpoint holds and what each method would leave of it, counted exactly. Free of torch: the app asks too."""
