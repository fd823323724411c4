// SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0)
/*
 * Packets of the target processes, at the ingress and egress hooks (tcx or clsact) of interfaces.
 *
 * Who owns a packet is known from its socket: the cgroup programs below write the process that
 * makes or binds a socket into the socket's local storage, accepted sockets inherit it from their
 * listener, and user space adds the sockets that were there before. The packet programs find the
 * socket (it comes with an outgoing packet, and is looked up for an incoming one) and read who that
 * is. What outlives its socket - the last ACK, a RST - is found in a small map of flows that have
 * ended, and the fragments behind the first one in a small map of fragmented packets.
 *
 * Two rules shape the code. Packets pass as if we were not there: every program returns
 * TC_ACT_UNSPEC, which is TCX_NEXT, so that other programs at the same hook have the say. And a
 * packet of somebody else costs finding its socket and nothing else.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/pkt_cls.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "process.h"
#include "record.h"
#include "ring.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* Record what passes, whoever owns it, and know every process. */
const volatile __u8 all_packets = 0;
/* Capture at most this many bytes of a packet: 1 to PACKET_MAX. */
const volatile __u32 snap_length = PACKET_MAX;
/* Set by user space once `multipath_listeners` has entries. */
__u32 has_multipath_listeners = 0;

/* Pids of target processes that began to run, for user space to look after the sockets that they
 * inherited. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 65536);
} started SEC(".maps");

/* The target processes, by pid in our own pid namespace. Preallocated, because a uprobe program
 * adds to it: kernels before 6.1 take what allocates there for a defect and log a warning. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, __u8);
} targets SEC(".maps");

/* Who owns a socket. Sockets that are accepted inherit it from their listener. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct packet_process);
} owners SEC(".maps");

/* A captured interface. */
struct interface {
	/* For packet_record.interface. */
	__u32 index;
	__u32 reserved;
	/* Packets to be recorded, and those of them that found no room in the ring. */
	__u64 matched;
	__u64 dropped;
};

/* By the kernel's interface index. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct interface);
} interfaces SEC(".maps");

/* A flow as one of its ends sees it. IPv4 addresses take the first four bytes. */
struct flow_key {
	__u8 local[16];
	__u8 remote[16];
	__be16 local_port;
	__be16 remote_port;
	__u8 protocol;
	__u8 version;
	__u8 reserved[2];
};

/* Flows that have ended or are about to, as a SYN, FIN or RST tells: for packets that come when the
 * socket is gone. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct flow_key);
	__type(value, struct packet_process);
} flows SEC(".maps");

struct fragment_key {
	__u8 source[16];
	__u8 destination[16];
	__u32 identification;
	__u8 protocol;
	__u8 version;
	__u8 reserved[2];
};

/* Who is at the ends of a packet; pid 0: not known, or not a target. */
struct ends {
	struct packet_process sender;
	struct packet_process receiver;
};

/* Fragmented packets whose first fragment, the only one with ports, was recorded. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct fragment_key);
	__type(value, struct ends);
} fragments SEC(".maps");

struct listener_key {
	__u8 address[16];
	__be16 port;
	__u8 version;
	__u8 reserved;
};

/* Multipath TCP listeners that were there before us. What receives their packets is a TCP socket
 * inside of theirs, which user space has no descriptor of. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct listener_key);
	__type(value, struct packet_process);
} multipath_listeners SEC(".maps");

/* Where a filter program, made by user space from an expression, goes on with a packet that
 * matches: the packet programs at the end of this file, in their order there. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 5); /* all but the last, which takes no filter */
	__type(key, __u32);
	__type(value, __u32);
} continuations SEC(".maps");

/* For user space, which compares the layouts of these types with its own. */
struct packet_record *unused_packet_record __attribute__((unused));
struct interface *unused_interface __attribute__((unused));
struct listener_key *unused_listener_key __attribute__((unused));

/* ---- Processes and their sockets ---- */

/* The pid of the current process in our own pid namespace; 0 if that does not show it. */
static __always_inline __u32 current_pid(void)
{
	struct process process = {};

	return current_process(&process) ? process.pid : 0;
}

/* Fills in who runs; false if that is nobody whose sockets we want to know. */
static __always_inline bool current_target(struct packet_process *process)
{
	process->pid = current_pid();
	if (!process->pid)
		return false;
	if (!all_packets && (!wanted_user() || !bpf_map_lookup_elem(&targets, &process->pid)))
		return false;
	bpf_get_current_comm(process->comm, sizeof(process->comm));
	return true;
}

/* A socket was made, or bound: by then a multipath TCP socket has made the TCP socket that its
 * packets go through. Returns 1: whoever it is may do so. */
static __always_inline int own(struct bpf_sock *socket)
{
	struct packet_process process, *owner;

	if (!current_target(&process))
		return 1;
	owner = bpf_sk_storage_get(&owners, socket, &process, BPF_SK_STORAGE_GET_F_CREATE);
	if (owner)
		*owner = process;
	else
		/* No memory, or more than net.core.optmem_max. */
		count(&shared.unowned_sockets, 1);
	return 1;
}

SEC("cgroup/sock_create")
int own_created(struct bpf_sock *socket)
{
	return own(socket);
}

SEC("cgroup/post_bind4")
int own_bound4(struct bpf_sock *socket)
{
	return own(socket);
}

SEC("cgroup/post_bind6")
int own_bound6(struct bpf_sock *socket)
{
	return own(socket);
}

/* A process begins to run the target's executable, at its entry point. */
SEC("uprobe")
int start_target(void *registers)
{
	__u32 pid = current_pid();
	__u8 present = 1;

	(void)registers;
	if (!pid || (filter_pid && pid != filter_pid) || !wanted_user())
		return 0;
	bpf_map_update_elem(&targets, &pid, &present, BPF_ANY);
	/* If there is no room, thousands have started at once: then their inherited sockets are
	 * not looked after, the others are. */
	bpf_ringbuf_output(&started, &pid, sizeof(pid), BPF_RB_FORCE_WAKEUP);
	return 0;
}

/* A process runs another executable now; start_target follows if it is the target's. */
SEC("raw_tp/sched_process_exec")
int exec_process(void *arguments)
{
	__u32 pid = current_pid();

	(void)arguments;
	bpf_map_delete_elem(&targets, &pid);
	return 0;
}

/* The last to be heard of a process is its first thread's end, after which its pid can be taken by
 * another one. */
SEC("raw_tp/sched_process_exit")
int exit_process(void *arguments)
{
	__u64 ids = bpf_get_current_pid_tgid();
	__u32 pid;

	(void)arguments;
	if ((__u32)ids != ids >> 32)
		return 0;
	pid = current_pid();
	bpf_map_delete_elem(&targets, &pid);
	return 0;
}

/* ---- What a packet is ---- */

#define IPV4_HEADER_MIN	     20
#define IPV4_MORE_FRAGMENTS  0x2000
#define IPV4_FRAGMENT_OFFSET 0x1fff
#define IPV6_HEADER	     40
#define IPV6_MORE_FRAGMENTS  1
#define IPV6_FRAGMENT_OFFSET 0xfff8
#define IPV6_EXTENSIONS_MAX  8
#define VLAN_TAG	     4
#define VLAN_TAGS_MAX	     2
#define TCP_FIN		     0x01
#define TCP_SYN		     0x02
#define TCP_RST		     0x04
#define TCP_ACK		     0x10
/* include/linux/net.h */
#define SOCK_STREAM 1
#define SOCK_DGRAM  2

/* What we need of a packet's headers. */
struct headers {
	__u8 source[16];
	__u8 destination[16];
	__be16 source_port;
	__be16 destination_port;
	/* IPPROTO_TCP or IPPROTO_UDP. */
	__u8 protocol;
	/* 4 or 6. */
	__u8 version;
	/* TCP's, 0 for UDP. */
	__u8 flags;
	/* A fragment, and not the first one: it has no ports. */
	bool later_fragment;
	/* Any fragment. */
	bool fragment;
	__u32 identification;
};

static __always_inline bool read_ports(struct __sk_buff *packet, struct headers *headers,
				       __u32 offset)
{
	if (headers->protocol == IPPROTO_UDP)
		return !bpf_skb_load_bytes(packet, offset, &headers->source_port, 4);
	if (headers->protocol != IPPROTO_TCP)
		return false;
	return !bpf_skb_load_bytes(packet, offset, &headers->source_port, 4) &&
	       !bpf_skb_load_bytes(packet, offset + 13, &headers->flags, 1);
}

static __always_inline bool read_ipv4(struct __sk_buff *packet, struct headers *headers,
				      __u32 offset)
{
	struct {
		__u8 version_and_length;
		__u8 service;
		__be16 length;
		__be16 identification;
		__be16 fragment;
		__u8 hops;
		__u8 protocol;
		__u16 checksum;
		__u32 source;
		__u32 destination;
	} header;
	__u32 length;
	__u16 fragment;

	if (bpf_skb_load_bytes(packet, offset, &header, sizeof(header)))
		return false;
	length = (header.version_and_length & 0xf) * 4;
	if (header.version_and_length >> 4 != 4 || length < IPV4_HEADER_MIN)
		return false;
	fragment = bpf_ntohs(header.fragment);
	headers->version = 4;
	headers->protocol = header.protocol;
	__builtin_memcpy(headers->source, &header.source, 4);
	__builtin_memcpy(headers->destination, &header.destination, 4);
	headers->identification = header.identification;
	headers->fragment = fragment & (IPV4_MORE_FRAGMENTS | IPV4_FRAGMENT_OFFSET);
	headers->later_fragment = fragment & IPV4_FRAGMENT_OFFSET;
	return headers->later_fragment || read_ports(packet, headers, offset + length);
}

static __always_inline bool read_ipv6(struct __sk_buff *packet, struct headers *headers,
				      __u32 offset)
{
	struct {
		__u32 version_class_flow;
		__be16 length;
		__u8 next;
		__u8 hops;
		__u8 source[16];
		__u8 destination[16];
	} header;
	__u8 next;

	if (bpf_skb_load_bytes(packet, offset, &header, sizeof(header)))
		return false;
	if ((bpf_ntohl(header.version_class_flow) >> 28) != 6)
		return false;
	headers->version = 6;
	__builtin_memcpy(headers->source, header.source, 16);
	__builtin_memcpy(headers->destination, header.destination, 16);
	next = header.next;
	offset += IPV6_HEADER;

#pragma unroll
	for (int i = 0; i < IPV6_EXTENSIONS_MAX; i++) {
		/* The generic form; the fragment header has its own. */
		__u8 extension[8];

		if (next == IPPROTO_TCP || next == IPPROTO_UDP)
			break;
		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING &&
		    next != IPPROTO_FRAGMENT && next != IPPROTO_DSTOPTS && next != IPPROTO_AH)
			return false;
		if (bpf_skb_load_bytes(packet, offset, extension, sizeof(extension)))
			return false;
		if (next == IPPROTO_FRAGMENT) {
			__u16 fragment = extension[2] << 8 | extension[3];

			__builtin_memcpy(&headers->identification, extension + 4, 4);
			headers->fragment = fragment & (IPV6_FRAGMENT_OFFSET | IPV6_MORE_FRAGMENTS);
			headers->later_fragment = fragment & IPV6_FRAGMENT_OFFSET;
			offset += 8;
			/* What follows a later fragment's header is data. The protocol in it is
			 * that of the first fragment's next header, which need not be a
			 * transport's; it does not matter for finding the first fragment. */
			if (headers->later_fragment) {
				headers->protocol = 0;
				return true;
			}
		} else if (next == IPPROTO_AH) {
			offset += (extension[1] + 2) * 4;
		} else {
			offset += (extension[1] + 1) * 8;
		}
		next = extension[0];
	}
	headers->protocol = next;
	return read_ports(packet, headers, offset);
}

/* Reads what is TCP or UDP over IP, with or without Ethernet's header and VLAN tags. */
static __always_inline bool read_headers(struct __sk_buff *packet, struct headers *headers,
					 const bool ethernet)
{
	__be16 type = packet->protocol;
	__u32 offset = 0;

	__builtin_memset(headers, 0, sizeof(*headers));
	if (ethernet) {
		if (bpf_skb_load_bytes(packet, ETH_HLEN - 2, &type, sizeof(type)))
			return false;
		offset = ETH_HLEN;
#pragma unroll
		for (int i = 0; i < VLAN_TAGS_MAX; i++) {
			if (type != bpf_htons(ETH_P_8021Q) && type != bpf_htons(ETH_P_8021AD))
				break;
			if (bpf_skb_load_bytes(packet, offset + 2, &type, sizeof(type)))
				return false;
			offset += VLAN_TAG;
		}
	}
	if (type == bpf_htons(ETH_P_IP))
		return read_ipv4(packet, headers, offset);
	if (type == bpf_htons(ETH_P_IPV6))
		return read_ipv6(packet, headers, offset);
	return false;
}

/* ---- Whose packet it is ---- */

enum end { SENDER, RECEIVER };

enum ownership {
	/* A target's. */
	OWNED,
	/* Somebody else's. */
	FOREIGN,
	/* There is no socket (any more). */
	NO_SOCKET,
};

static __always_inline void make_flow_key(struct flow_key *key, const struct headers *headers,
					  const enum end end)
{
	__builtin_memset(key, 0, sizeof(*key));
	if (end == SENDER) {
		__builtin_memcpy(key->local, headers->source, 16);
		__builtin_memcpy(key->remote, headers->destination, 16);
		key->local_port = headers->source_port;
		key->remote_port = headers->destination_port;
	} else {
		__builtin_memcpy(key->local, headers->destination, 16);
		__builtin_memcpy(key->remote, headers->source, 16);
		key->local_port = headers->destination_port;
		key->remote_port = headers->source_port;
	}
	key->protocol = headers->protocol;
	key->version = headers->version;
}

/* Looks up the socket at one end, to be released. A connection that is just being made has the
 * listener's. */
static __always_inline struct bpf_sock *find_socket(struct __sk_buff *packet,
						    const struct flow_key *flow)
{
	struct bpf_sock_tuple tuple;
	__u32 size;

	/* As a packet to the local end would have it. */
	if (flow->version == 4) {
		__builtin_memcpy(&tuple.ipv4.saddr, flow->remote, 4);
		__builtin_memcpy(&tuple.ipv4.daddr, flow->local, 4);
		tuple.ipv4.sport = flow->remote_port;
		tuple.ipv4.dport = flow->local_port;
		size = sizeof(tuple.ipv4);
		if (flow->protocol == IPPROTO_TCP)
			return bpf_sk_lookup_tcp(packet, &tuple, size, BPF_F_CURRENT_NETNS, 0);
		return bpf_sk_lookup_udp(packet, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	}
	__builtin_memcpy(tuple.ipv6.saddr, flow->remote, 16);
	__builtin_memcpy(tuple.ipv6.daddr, flow->local, 16);
	tuple.ipv6.sport = flow->remote_port;
	tuple.ipv6.dport = flow->local_port;
	size = sizeof(tuple.ipv6);
	if (flow->protocol == IPPROTO_TCP)
		return bpf_sk_lookup_tcp(packet, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	return bpf_sk_lookup_udp(packet, &tuple, size, BPF_F_CURRENT_NETNS, 0);
}

/* Whether a socket without an owner belongs to a multipath TCP listener of a target. */
static __always_inline struct packet_process *multipath_owner(const struct flow_key *flow)
{
	struct listener_key key = {};
	struct packet_process *owner;

	key.port = flow->local_port;
	key.version = flow->version;
	__builtin_memcpy(key.address, flow->local, 16);
	owner = bpf_map_lookup_elem(&multipath_listeners, &key);
	if (owner)
		return owner;
	/* To any address, which user space has entered for either version as the listener takes
	 * it. */
	__builtin_memset(key.address, 0, 16);
	return bpf_map_lookup_elem(&multipath_listeners, &key);
}

static __always_inline enum ownership
socket_owner(struct bpf_sock *socket, const struct flow_key *flow, struct packet_process *process)
{
	struct packet_process *owner = bpf_sk_storage_get(&owners, socket, NULL, 0);

	if (!owner && *(volatile __u32 *)&has_multipath_listeners &&
	    flow->protocol == IPPROTO_TCP) {
		owner = multipath_owner(flow);
		/* From now on it has one: if this is the listener, all that it accepts, too. */
		if (owner)
			bpf_sk_storage_get(&owners, socket, owner, BPF_SK_STORAGE_GET_F_CREATE);
	}
	if (!owner)
		return FOREIGN;
	*process = *owner;
	return OWNED;
}

/* The socket that comes with an outgoing packet, if it is the one that the packet belongs to. A
 * tunnel's packet comes with the socket of the packet within, and a RST that answers for nobody
 * with one of the kernel's own. */
static __always_inline bool is_packets_own(const struct bpf_sock *socket,
					   const struct headers *headers)
{
	return (socket->type == SOCK_STREAM || socket->type == SOCK_DGRAM) &&
	       socket->protocol == headers->protocol &&
	       socket->src_port == bpf_ntohs(headers->source_port);
}

/* Says who owns one end of a packet with ports. */
static __always_inline enum ownership find_owner(struct __sk_buff *packet,
						 const struct headers *headers, const enum end end,
						 struct packet_process *process)
{
	enum ownership ownership = NO_SOCKET;
	struct packet_process *owner;
	struct bpf_sock *socket;
	struct flow_key flow;

	make_flow_key(&flow, headers, end);
	if (end == SENDER) {
		socket = packet->sk;
		if (socket)
			socket = bpf_sk_fullsock(socket);
		if (socket && is_packets_own(socket, headers))
			ownership = socket_owner(socket, &flow, process);
	}
	if (ownership == NO_SOCKET) {
		socket = find_socket(packet, &flow);
		if (socket) {
			ownership = socket_owner(socket, &flow, process);
			bpf_sk_release(socket);
		}
	}
	if (flow.protocol != IPPROTO_TCP)
		return ownership;

	switch (ownership) {
	case OWNED:
		if (headers->flags & (TCP_SYN | TCP_FIN | TCP_RST))
			bpf_map_update_elem(&flows, &flow, process, BPF_ANY);
		break;
	case FOREIGN:
		/* Ports are used again: the ended flow of this name was another one. */
		if (headers->flags & TCP_SYN)
			bpf_map_delete_elem(&flows, &flow);
		break;
	case NO_SOCKET:
		/* Who begins a connection has a socket, so this is forwarded for somebody else,
		 * whose port the ended flow had. */
		if ((headers->flags & (TCP_SYN | TCP_ACK)) == TCP_SYN) {
			bpf_map_delete_elem(&flows, &flow);
			break;
		}
		owner = bpf_map_lookup_elem(&flows, &flow);
		if (owner) {
			*process = *owner;
			ownership = OWNED;
		}
		break;
	}
	return ownership;
}

/* Whether an outgoing packet is somebody else's, told by the socket that comes with it, without a
 * look at the packet. */
static __always_inline bool sent_by_others(struct __sk_buff *packet)
{
	struct bpf_sock *socket = packet->sk;

	if (*(volatile __u32 *)&has_multipath_listeners || !socket)
		return false;
	socket = bpf_sk_fullsock(socket);
	if (!socket || (socket->protocol != IPPROTO_TCP && socket->protocol != IPPROTO_UDP) ||
	    (socket->type != SOCK_STREAM && socket->type != SOCK_DGRAM))
		return false;
	return !bpf_sk_storage_get(&owners, socket, NULL, 0);
}

/* Finds the targets at both ends of a packet; false if there are none. */
static __always_inline bool find_ends(struct __sk_buff *packet, const struct headers *headers,
				      const bool sender, const bool receiver, struct ends *ends)
{
	struct fragment_key key;
	struct ends *first;
	bool found = false;

	if (headers->fragment) {
		__builtin_memset(&key, 0, sizeof(key));
		__builtin_memcpy(key.source, headers->source, 16);
		__builtin_memcpy(key.destination, headers->destination, 16);
		key.identification = headers->identification;
		/* IPv6 identifies a packet by the addresses alone. */
		key.protocol = headers->version == 4 ? headers->protocol : 0;
		key.version = headers->version;
	}
	if (headers->later_fragment) {
		first = bpf_map_lookup_elem(&fragments, &key);
		if (!first)
			return false;
		*ends = *first;
		return true;
	}
	if (sender && find_owner(packet, headers, SENDER, &ends->sender) == OWNED)
		found = true;
	if (receiver && find_owner(packet, headers, RECEIVER, &ends->receiver) == OWNED)
		found = true;
	if (!headers->fragment)
		return found;
	if (found) {
		bpf_map_update_elem(&fragments, &key, ends, BPF_ANY);
		return true;
	}
	/* Identifications are used again: what had this one at this end was another packet. What
	 * had it at the other end only may be this one, at another hook. */
	first = bpf_map_lookup_elem(&fragments, &key);
	if (first && ((sender && first->sender.pid) || (receiver && first->receiver.pid)))
		bpf_map_delete_elem(&fragments, &key);
	return false;
}

/* ---- The packet's way to user space ---- */

/* What goes into a record besides the packet. */
struct note {
	struct ends ends;
	__u32 interface;
	__u32 length;
	__u32 captured;
	enum packet_direction direction;
};

/* Where a VLAN tag stands. The kernel keeps it apart from the packet; on the wire it is there. */
#define VLAN_OFFSET 12

/* Copies `length` bytes, of which there are 1 to `room`. */
static __always_inline bool copy_bytes(struct __sk_buff *packet, __u32 from, __u8 *to, __u64 length,
				       const __u32 room)
{
	__u64 last = length - 1;

	/* Never otherwise. The verifier wants to see both bounds, and before Linux 6.8 learns
	 * nothing of the lower one from a comparison with 0; the barrier keeps the compiler from
	 * making one. */
	asm volatile("" : "+r"(last));
	if (last >= room)
		return false;
	return !bpf_skb_load_bytes(packet, from, to, last + 1);
}

/* Copies the packet as it is on the wire, the first `length` bytes of it. */
static __always_inline bool copy_packet(struct __sk_buff *packet, __u8 *to, __u64 length,
					const __u32 room, const bool ethernet)
{
	const __u32 behind_tag = VLAN_OFFSET + VLAN_TAG;

	if (ethernet && packet->vlan_present && length > behind_tag) {
		__be16 tag[2] = {packet->vlan_proto, bpf_htons(packet->vlan_tci)};

		if (bpf_skb_load_bytes(packet, 0, to, VLAN_OFFSET))
			return false;
		__builtin_memcpy(to + VLAN_OFFSET, tag, VLAN_TAG);
		return copy_bytes(packet, VLAN_OFFSET, to + behind_tag, length - behind_tag,
				  room - behind_tag);
	}
	return copy_bytes(packet, 0, to, length, room);
}

/* Sends a packet in a record with room for `room` bytes, a constant: the verifier wants to know the
 * size of a reservation. */
static __always_inline bool send_in(struct __sk_buff *packet, const struct note *note,
				    const __u32 room, const bool ethernet)
{
	/* Close to the reservation, so that records are in the order of their times as far as
	 * packets on several CPUs have one. */
	__u64 time_ns = bpf_ktime_get_ns();
	struct packet_record *record;

	record = bpf_ringbuf_reserve(&ring, sizeof(*record) + room, 0);
	if (!record)
		return false;
	if (!copy_packet(packet, (__u8 *)(record + 1), note->captured, room, ethernet)) {
		bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);
		return false;
	}
	record->time_ns = time_ns;
	record->sender = note->ends.sender;
	record->receiver = note->ends.receiver;
	record->kind = RECORD_PACKET;
	record->direction = note->direction;
	__builtin_memset(record->reserved, 0, sizeof(record->reserved));
	record->interface = note->interface;
	record->length = note->length;
	record->captured = note->captured;
	bpf_ringbuf_submit(record, wakeup_flags());
	return true;
}

/* Picks the smallest size class that holds the packet: an ACK, one at the usual MTU, one at a
 * jumbo frame's, what segmentation offload makes of several. */
static __always_inline bool send(struct __sk_buff *packet, const struct note *note,
				 const bool ethernet)
{
	if (note->captured <= 96)
		return send_in(packet, note, 96, ethernet);
	if (note->captured <= 256)
		return send_in(packet, note, 256, ethernet);
	if (note->captured <= 768)
		return send_in(packet, note, 768, ethernet);
	if (note->captured <= 1536)
		return send_in(packet, note, 1536, ethernet);
	if (note->captured <= 4096)
		return send_in(packet, note, 4096, ethernet);
	if (note->captured <= 9216)
		return send_in(packet, note, 9216, ethernet);
	if (note->captured <= 20480)
		return send_in(packet, note, 20480, ethernet);
	if (note->captured <= 40960)
		return send_in(packet, note, 40960, ethernet);
	if (note->captured <= 66048)
		return send_in(packet, note, 66048, ethernet);
	if (note->captured <= 131072)
		return send_in(packet, note, 131072, ethernet);
	return send_in(packet, note, PACKET_MAX, ethernet);
}

static __always_inline int capture(struct __sk_buff *packet, const enum packet_direction direction,
				   const bool sender, const bool receiver, const bool ethernet)
{
	struct interface *interface;
	struct headers headers;
	struct note note = {};
	__u32 index;

	if (!all_packets && !receiver && sent_by_others(packet))
		return TC_ACT_UNSPEC;
	if (!read_headers(packet, &headers, ethernet) ||
	    !find_ends(packet, &headers, sender, receiver, &note.ends)) {
		if (!all_packets)
			return TC_ACT_UNSPEC;
	}
	index = packet->ifindex;
	interface = bpf_map_lookup_elem(&interfaces, &index);
	if (!interface)
		return TC_ACT_UNSPEC;
	note.interface = interface->index;
	note.direction = direction;
	note.length = packet->len;
	if (ethernet && packet->vlan_present)
		note.length += VLAN_TAG;
	note.captured = note.length;
	if (note.captured > snap_length)
		note.captured = snap_length;
	count(&interface->matched, 1);
	if (!send(packet, &note, ethernet)) {
		count(&interface->dropped, 1);
		count(&shared.lost_records, 1);
		count(&shared.lost_bytes, note.length);
	}
	return TC_ACT_UNSPEC;
}

SEC("tc")
int ecapture_rx(struct __sk_buff *packet)
{
	return capture(packet, PACKET_INBOUND, false, true, true);
}

SEC("tc")
int ecapture_tx(struct __sk_buff *packet)
{
	return capture(packet, PACKET_OUTBOUND, true, false, true);
}

SEC("tc")
int ecapture_ip_rx(struct __sk_buff *packet)
{
	return capture(packet, PACKET_INBOUND, false, true, false);
}

SEC("tc")
int ecapture_ip_tx(struct __sk_buff *packet)
{
	return capture(packet, PACKET_OUTBOUND, true, false, false);
}

/* `lo` receives what it sends: once is enough, and both ends are here. As it is received it has the
 * form that tcpdump sees: what is sent can be larger than IP allows, and is cut up in between. */
SEC("tc")
int ecapture_lo(struct __sk_buff *packet)
{
	return capture(packet, PACKET_INBOUND, true, true, true);
}

/* When a packet is received on `lo` it has no socket any more, and its sender may just have gone:
 * so the ends of flows are noted when they are sent. */
SEC("tc")
int ecapture_lo_tx(struct __sk_buff *packet)
{
	struct packet_process process;
	struct headers headers;

	if (!sent_by_others(packet) && read_headers(packet, &headers, true) &&
	    !headers.later_fragment)
		find_owner(packet, &headers, SENDER, &process);
	return TC_ACT_UNSPEC;
}
