"""Which kernel attends, and how processors of diffusers are led to it."""
