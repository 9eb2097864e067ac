"""The plugins that come with medtrain, each built on the public API only."""
