"""The risk models written down plainly, to measure against: the steps of their descriptions, one after the other.

Each image goes through the encoder on its own, attention weights are formed, and a network is frozen only where its
description says so. Nothing is made slower than that. State-dict keys are those of checkpoints, so that one set of
weights fits both sides; outputs that the measured scores do not depend on are left out.
"""
