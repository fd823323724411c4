/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/*
 * The table of connections, and what is told of each of them once: its addresses, and what its ends
 * agreed on in the handshake.
 *
 * Behind a tls.Conn there is a net.Conn of a type that only the running program knows. Its itab
 * names the type; only types that user space listed, because the executable proves what is in them,
 * are followed. Whatever is not listed, or can't be read, is left unknown.
 */
#ifndef ECAPTURE_CONNECTION_H
#define ECAPTURE_CONNECTION_H

#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include "process.h"
#include "record.h"
#include "ring.h"
#include "target.h"
#include "user_memory.h"

/* The second word of an interface is its data. */
#define INTERFACE_DATA 8
/* runtime.itab: the dynamic type. */
#define ITAB_TYPE 8
/* How many wrappers there may be around a socket: three. */
#define INTERFACES_MAX 4

enum type_role {
	TYPE_TCP_CONN = 1,
	TYPE_UNIX_CONN = 2,
	TYPE_TCP_ADDR = 3,
	TYPE_UNIX_ADDR = 4,
	TYPE_WRAPPER = 5,
};

struct dynamic_type {
	/* enum type_role */
	__u32 role;
	/* Where a wrapper's net.Conn is. */
	__u32 offset;
};

/* A type of a target, by the address of its descriptor as linked. */
struct type_key {
	__u64 descriptor;
	__u32 target_number;
	__u32 reserved;
};

/* The types that can be followed. Filled by user space before anything is attached. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256); /* gobin: ConnectionPlan::TYPES_MAX; user space may set more */
	__type(key, struct type_key);
	__type(value, struct dynamic_type);
} dynamic_types SEC(".maps");

struct connection_key {
	__u64 conn;
	__u64 pid;
};

struct stream {
	/* Bytes and records so far. */
	__u64 offset;
	__u32 sequence;
	__u32 reserved;
};

struct connection {
	__u64 first_seen_ns;
	/* The word that tells apart two tls.Conn which lived at the same address, one after the
	 * other. */
	__u64 inner;
	struct stream streams[2];
	/* The connection_record has been sent. */
	__u8 announced;
	/* The handshake was seen. */
	__u8 from_start;
	/* It is in the table of closed connections now. */
	__u8 moved;
	__u8 reserved[5];
};

/* Least recently used entries make room: a program need not close its connections. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, struct connection_key);
	__type(value, struct connection);
} connections SEC(".maps");

/* Connections that were closed a short while ago: Read goes on returning what had been decrypted
 * before, and a Write that waited for its turn goes on. A table of their own, so that these don't
 * displace open ones. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct connection_key);
	__type(value, struct connection);
} closed_connections SEC(".maps");

/* A connection, open or closed. Its entry may be another connection's a moment later: what is
 * deleted or displaced is used again at once. */
static __always_inline struct connection *lookup_connection(const struct connection_key *key)
{
	struct connection *connection = bpf_map_lookup_elem(&connections, key);

	return connection ? connection : bpf_map_lookup_elem(&closed_connections, key);
}

static __always_inline void fill_header(struct record_header *header, const struct process *process,
					__u64 time_ns, enum record_kind kind)
{
	header->time_ns = time_ns;
	header->conn = 0;
	header->first_seen_ns = 0;
	header->pid = process->pid;
	header->tid = process->tid;
	bpf_get_current_comm(header->comm, sizeof(header->comm));
	header->kind = kind;
	__builtin_memset(header->reserved, 0, sizeof(header->reserved));
}

/* The same for a record about a connection. */
static __always_inline void fill_connection_header(struct record_header *header,
						   const struct process *process, __u64 time_ns,
						   enum record_kind kind, __u64 conn,
						   __u64 first_seen_ns)
{
	fill_header(header, process, time_ns, kind);
	header->conn = conn;
	header->first_seen_ns = first_seen_ns;
}

/* A Go interface's value: what is known of its type, and its data word. */
struct value {
	/* enum type_role; 0: not known. */
	__u32 role;
	__u32 offset;
	__u64 data;
};

/* Where a connection's program is loaded, and which one it is. */
struct place {
	const volatile struct layout *layout;
	__u32 target_number;
	/* Leads from linked to actual addresses. */
	__u64 bias;
};

/* Looks at the interface at this address. */
static __always_inline void peek_interface(struct value *value, __u64 interface,
					   const struct place *place)
{
	struct type_key key = {.target_number = place->target_number};
	const struct dynamic_type *known;
	__u64 itab, type;

	value->role = 0;
	if (!peek_word(&itab, interface) || !itab || !peek_word(&type, itab + ITAB_TYPE))
		return;
	key.descriptor = type - place->bias;
	known = bpf_map_lookup_elem(&dynamic_types, &key);
	if (!known || !peek_word(&value->data, interface + INTERFACE_DATA))
		return;
	value->role = known->role;
	value->offset = known->offset;
}

/* Finds the net.netFD that a tls.Conn ends at; 0 if that is not known. */
static __always_inline __u64 find_fd(__u64 conn, const struct place *place)
{
	__u64 interface = conn + place->layout->tls_conn;
	struct value value;
	__u64 fd;

	for (int depth = 0; depth < INTERFACES_MAX; depth++) {
		peek_interface(&value, interface, place);
		if (value.role == TYPE_TCP_CONN || value.role == TYPE_UNIX_CONN)
			return peek_word(&fd, value.data + place->layout->socket_fd) ? fd : 0;
		if (value.role != TYPE_WRAPPER)
			return 0;
		interface = value.data + value.offset;
	}
	return 0;
}

/* Reads a Go slice or string of at most `room` bytes, a constant, and returns its length; -1 if it
 * is longer or can't be read. */
static __always_inline int peek_slice(void *to, const __u32 room, __u64 slice)
{
	__u64 header[2];
	__u64 length;

	if (!peek(header, sizeof(header), slice))
		return -1;
	length = header[1];
	/* Keeps the compiler from comparing another copy than the one that is passed on. */
	asm volatile("" : "+r"(length));
	if (length > room)
		return -1;
	if (length && bpf_probe_read_user(to, length, (void *)header[0]))
		return -1;
	return length;
}

static __always_inline void peek_tcp_address(struct address *address, __u64 tcp_addr,
					     const volatile struct layout *layout)
{
	int length, zone_length;
	__u64 port;

	length = peek_slice(address->bytes, ZONE_OFFSET, tcp_addr + layout->tcp_ip);
	zone_length =
		peek_slice(address->bytes + ZONE_OFFSET, ZONE_MAX, tcp_addr + layout->tcp_zone);
	if (zone_length < 0 || (length != 0 && length != 4 && length != 16))
		return;
	if (!peek_word(&port, tcp_addr + layout->tcp_port) || port > 0xffff)
		return;
	address->length = length;
	address->zone_length = zone_length;
	address->port = port;
	address->family = ADDRESS_TCP;
}

static __always_inline void peek_address(struct address *address, const struct value *value,
					 const volatile struct layout *layout)
{
	int length;

	if (value->role == TYPE_TCP_ADDR) {
		peek_tcp_address(address, value->data, layout);
	} else if (value->role == TYPE_UNIX_ADDR) {
		length = peek_slice(address->bytes, UNIX_NAME_MAX, value->data + layout->unix_name);
		if (length < 0)
			return;
		address->length = length;
		address->family = ADDRESS_UNIX;
	}
}

/* What the ends agreed on: all of it, or nothing. */
static __always_inline void peek_agreed(struct connection_record *record, __u64 conn,
					const volatile struct layout *layout)
{
	__u8 handshake, is_client, resumed;
	__u16 version, cipher_suite;
	int length;

	if (!peek(&handshake, sizeof(handshake), conn + layout->tls_handshake) ||
	    !peek(&is_client, sizeof(is_client), conn + layout->tls_is_client) ||
	    !peek(&resumed, sizeof(resumed), conn + layout->tls_resumed) ||
	    !peek(&version, sizeof(version), conn + layout->tls_version) ||
	    !peek(&cipher_suite, sizeof(cipher_suite), conn + layout->tls_cipher_suite))
		return;
	/* SSL 3.0 to TLS 1.3, and booleans: anything else is not what we take it for. */
	if (handshake != 1 || is_client > 1 || resumed > 1 || version < 0x0300 || version > 0x0304)
		return;
	length = peek_slice(record->server_name, SERVER_NAME_MAX, conn + layout->tls_server_name);
	record->server_name_length = length > 0 ? length : 0;
	length = peek_slice(record->protocol, PROTOCOL_MAX, conn + layout->tls_protocol);
	record->protocol_length = length > 0 ? length : 0;
	record->version = version;
	record->cipher_suite = cipher_suite;
	record->resumed = resumed;
	record->role = is_client ? ROLE_CLIENT : ROLE_SERVER;
}

/* Tells of a connection: its pid and the current tid are in `ids`. If the ring has no room, the
 * next call tries again. A function of its own, with plain numbers only, so that the verifier looks
 * at it once and forgets what it saw, instead of going on to the loops behind it in every state
 * that the unknowns here can lead to. It takes what is in memory: since Linux 6.14 a function that
 * can wait for more is refused where programs can't, even if it never does. Besides, the program
 * has just used nearly all of this. */
__noinline int send_connection(__u64 conn, __u64 ids, __u64 bias, __u64 time_ns, __u32 number)
{
	struct place place = {
		.layout = find_layout(number),
		.target_number = number,
		.bias = bias,
	};
	struct process process = {.pid = ids >> 32, .tid = ids};
	struct connection_key key = {.conn = conn, .pid = process.pid};
	struct value local = {}, remote = {};
	struct connection_record *record;
	struct connection *connection;
	__u64 descriptor = -1, fd = 0;

	connection = lookup_connection(&key);
	if (!connection || !place.layout)
		return 0;
	if (place.layout->known)
		fd = find_fd(conn, &place);
	if (fd) {
		peek_interface(&local, fd + place.layout->fd_local, &place);
		peek_interface(&remote, fd + place.layout->fd_remote, &place);
		if (!peek_word(&descriptor, fd + place.layout->fd_descriptor))
			descriptor = -1;
	}

	record = bpf_ringbuf_reserve(&ring, sizeof(*record), 0);
	if (!record)
		return 0;
	__builtin_memset(record, 0, sizeof(*record));
	fill_connection_header(&record->header, &process, time_ns, RECORD_CONNECTION, conn,
			       connection->first_seen_ns);
	record->from_start = connection->from_start;
	record->fd = descriptor;
	if (place.layout->known) {
		peek_address(&record->local, &local, place.layout);
		peek_address(&record->remote, &remote, place.layout);
		peek_agreed(record, conn, place.layout);
	}
	bpf_ringbuf_submit(record, wakeup_flags());
	connection->announced = 1;
	return 1;
}

#endif
