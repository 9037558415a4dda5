"""Write what was found in many photographs."""
