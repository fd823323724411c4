/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The records that the eBPF programs put into the ring buffer: the contract between kernel and user
 * space. crates/events/src/record.rs is the Rust mirror; crates/capture/src/layout.rs compares the
 * two, field by field, from the compiled object's BTF, so that a difference fails the build.
 *
 * All integers are in the machine's byte order, which is little-endian on both architectures that
 * we support. Every record begins at a multiple of 8 bytes.
 */
#ifndef ECAPTURE_RECORD_H
#define ECAPTURE_RECORD_H

#include <linux/types.h>

/* record_header.kind */
enum record_kind {
	/* struct data_record: plaintext that was written or read. */
	RECORD_DATA = 1,
	/* struct close_record: (*Conn).Close was called. */
	RECORD_CLOSE = 2,
	/* struct key_record: a TLS secret. */
	RECORD_KEY = 3,
	/* struct packet_record: a packet passed an interface. */
	RECORD_PACKET = 4,
	/* struct connection_record: what a connection connects, and what its ends agreed on. */
	RECORD_CONNECTION = 5,
	/* Where a process runs. User space adds these, programs don't. Behind the record_header
	 * come five __u16, the bytes of each text (0: not known), and 6 unused bytes, then the
	 * texts themselves: the container's id, who runs it, the uid of its pod, the pod's name and
	 * namespace. */
	RECORD_PROCESS = 6,
};

/* The target's point of view; an index of the streams in struct connection. */
enum direction {
	DIRECTION_WRITE = 0,
	DIRECTION_READ = 1,
};

/* data_record.missing: why the bytes counted in data_record.omitted are not there. */
enum missing_reason {
	/* Nothing is missing. */
	MISSING_NOTHING = 0,
	/* The user asked for no more bytes of a call than this (--tsize). */
	MISSING_TRUNCATED = 1,
	/* The target's memory could not be read, for example because it was paged out. */
	MISSING_UNREADABLE = 2,
	/* One call passed more bytes than a probe is allowed to copy. */
	MISSING_TOO_LONG = 3,
};

/* What every record begins with. */
struct record_header {
	/* When the probe was hit: CLOCK_MONOTONIC, in ns. */
	__u64 time_ns;
	/* The address of the tls.Conn in the target: names a connection as long as it lives. */
	__u64 conn;
	/* When this tls.Conn was first seen, CLOCK_MONOTONIC in ns; (pid, conn, first_seen_ns) is
	 * unique to a connection. */
	__u64 first_seen_ns;
	/* Process id and thread id, in our own pid namespace. */
	__u32 pid;
	__u32 tid;
	/* The thread's name, padded with NUL; not necessarily text. */
	__u8 comm[16];
	/* enum record_kind */
	__u8 kind;
	__u8 reserved[7];
};

/* A part of one call's plaintext. The payload follows: `length` bytes. */
struct data_record {
	struct record_header header;
	/* Bytes that passed in this direction of the connection before this record, seen by us or
	 * not. */
	__u64 stream_offset;
	/* Bytes of the whole call, and how many of them came before this record. */
	__u64 call_length;
	__u64 call_offset;
	/* Bytes behind the payload that were not captured, and never will be. */
	__u64 omitted;
	/* The id of the goroutine, as it is in Go's stack traces; 0: not known. */
	__u64 goroutine;
	/* Bytes of payload. */
	__u32 length;
	/* Records of this direction of the connection before this one, delivered or lost; wraps. */
	__u32 sequence;
	/* enum direction */
	__u8 direction;
	/* enum missing_reason, of the omitted bytes */
	__u8 missing;
	__u8 reserved[6];
};

/* close_record.cause */
enum close_cause {
	/* (*Conn).Close was called. */
	CLOSE_CALLED = 0,
	/* The program dropped it without a call, some time ago: its memory is another connection's
	 * now. */
	CLOSE_DROPPED = 1,
};

/* The end of a connection. What follows of it all the same had been decrypted or begun before: Read
 * and Write look at the end late. */
struct close_record {
	struct record_header header;
	/* Bytes that passed in each direction, seen by us or not. */
	__u64 stream_length[2];
	/* Records of each direction, delivered or lost; wraps. */
	__u32 sequence[2];
	/* enum close_cause */
	__u8 cause;
	__u8 reserved[7];
};

/* address.family */
enum address_family {
	/* The address is not known. */
	ADDRESS_UNKNOWN = 0,
	/* A TCP address: port, and an IP address of 4 or 16 bytes, or of none. */
	ADDRESS_TCP = 1,
	/* A Unix socket's name: its path, "@" and a name in the abstract namespace, or nothing. */
	ADDRESS_UNIX = 2,
};

/* The longest zone of an IPv6 address, which is an interface's name; and where it begins. */
#define ZONE_MAX    16
#define ZONE_OFFSET 16
/* sizeof(sockaddr_un.sun_path) */
#define UNIX_NAME_MAX 108

/* One end of a connection, as Go's net.Addr has it. */
struct address {
	/* enum address_family */
	__u8 family;
	/* Bytes of the IP address or of the Unix socket's name. */
	__u8 length;
	/* Bytes of the zone, which begins at ZONE_OFFSET. */
	__u8 zone_length;
	__u8 reserved;
	/* In the machine's byte order. */
	__u16 port;
	__u8 reserved2[2];
	/* Bytes beyond the lengths are undefined. */
	__u8 bytes[UNIX_NAME_MAX];
};

/* connection_record.role */
enum connection_role {
	ROLE_UNKNOWN = 0,
	ROLE_CLIENT = 1,
	ROLE_SERVER = 2,
};

/* The longest names that TLS has room for, or DNS. Longer ones are left out. */
#define SERVER_NAME_MAX 255
#define PROTOCOL_MAX	255

/* What a connection connects, and what its ends agreed on: sent with its first plaintext, when the
 * handshake is over. */
struct connection_record {
	struct record_header header;
	/* The socket's file descriptor; -1: not known. */
	__s32 fd;
	/* TLS version and cipher suite, as in ServerHello. Version 0: neither these nor anything
	 * below but the addresses is known. */
	__u16 version;
	__u16 cipher_suite;
	/* enum connection_role */
	__u8 role;
	/* 1: an earlier session was resumed. */
	__u8 resumed;
	/* 1: the connection's handshake was seen, so nothing of its plaintext was missed. */
	__u8 from_start;
	/* Bytes of the names below; 0: there is none. */
	__u8 server_name_length;
	__u8 protocol_length;
	__u8 reserved[3];
	struct address local;
	struct address remote;
	/* What SNI says, and what ALPN selected; bytes beyond the lengths are undefined. */
	__u8 server_name[SERVER_NAME_MAX + 1];
	__u8 protocol[PROTOCOL_MAX + 1];
};

/* The longest that a label, a client random and a secret can be. Labels have up to 31 characters;
 * secrets are 48 bytes before TLS 1.3 and as long as a hash since. */
#define KEY_LABEL_MAX	  40
#define CLIENT_RANDOM_LEN 32
#define KEY_SECRET_MAX	  64

/* A TLS secret, as it stands in a key log; header.conn and header.first_seen_ns are 0. */
struct key_record {
	struct record_header header;
	__u8 label_length;
	__u8 secret_length;
	__u8 reserved[6];
	/* Bytes beyond the lengths are undefined. */
	__u8 label[KEY_LABEL_MAX];
	__u8 client_random[CLIENT_RANDOM_LEN];
	__u8 secret[KEY_SECRET_MAX];
};

/* The most payload bytes that one record holds. */
#define PAYLOAD_MAX 16384

/* A process that owns one end of a packet's flow. */
struct packet_process {
	/* Process id, in our own pid namespace; 0: not known, or not a target. */
	__u32 pid;
	/* The name of the thread that made the socket, padded with NUL; not necessarily text. */
	__u8 comm[16];
};

/* packet_record.direction: the interface's point of view. */
enum packet_direction {
	PACKET_INBOUND = 0,
	PACKET_OUTBOUND = 1,
};

/* A packet as it passed an interface, from its link-layer header on (if the interface's link type
 * has one). The captured bytes follow: `captured` of them. There is no record_header: a packet
 * belongs to no tls.Conn. But the kind stands at the same place. */
struct packet_record {
	/* When it passed: CLOCK_MONOTONIC, in ns. */
	__u64 time_ns;
	/* Who sent it, and whom it is for. Both are known only where both ends are on this
	 * interface, that is on `lo`. */
	struct packet_process sender;
	struct packet_process receiver;
	/* enum record_kind */
	__u8 kind;
	/* enum packet_direction */
	__u8 direction;
	__u8 reserved[2];
	/* Index of the interface, in the order in which user space knows them. */
	__u32 interface;
	/* Bytes of the packet, and how many of them are here. A segment that the interface will cut
	 * up (GSO), or has put together (GRO), counts as one packet. */
	__u32 length;
	__u32 captured;
};

/* The most bytes of a packet that one record holds: what readers of pcapng accept. */
#define PACKET_MAX 262144

/* What user space shares with the programs, in their .bss. */
struct shared_state {
	/* Set by user space before it goes to sleep, cleared by the program that wakes it: enum
	 * wake. */
	__u32 wake;
	__u32 reserved;
	/* Records, and bytes of plaintext in them, that found no room in the ring buffer. */
	__u64 lost_records;
	__u64 lost_bytes;
	/* Calls of which at least a part could not be read, and the bytes of these parts. */
	__u64 unreadable_records;
	__u64 unreadable_bytes;
	/* Bytes of calls that were longer than a probe is allowed to copy. */
	__u64 too_long_bytes;
	/* Hits whose arguments could not be read or make no sense, so that nothing is known of
	 * them. */
	__u64 unknown_calls;
	/* Times that a process's socket could not be remembered as its own, so that packets of it
	 * may be missing. */
	__u64 unowned_sockets;
};

/* shared_state.wake */
enum wake {
	/* User space is awake. */
	WAKE_NOBODY = 0,
	/* It sleeps for a moment, and wants to be woken only if the ring fills up. */
	WAKE_UNDER_PRESSURE = 1,
	/* It has nothing to do and wants to be woken by the next record. */
	WAKE_AT_ONCE = 2,
};

#endif
