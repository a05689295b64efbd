"""What methods are built from: heads, views, masks, teachers, objectives, optimisers."""
