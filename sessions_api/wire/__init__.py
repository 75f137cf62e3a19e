"""The public contract: what goes over the wire, as msgspec Structs and bytes."""
