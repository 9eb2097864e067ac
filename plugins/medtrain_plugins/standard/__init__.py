"""What medtrain does when no plugin answers."""
