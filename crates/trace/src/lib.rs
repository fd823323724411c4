//! What happened: from records to text and JSON lines, without I/O.
