"""The process that calls the world: claims due tasks, delivers them, records what came back."""
