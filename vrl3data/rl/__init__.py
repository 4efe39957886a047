"""Stages 2 and 3 of VRL3: offline RL on demonstrations, then online RL, with one agent and one replay."""
