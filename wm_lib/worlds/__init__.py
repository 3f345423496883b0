"""Where one can act: real environments and dreams, behind one VectorEnv interface."""
