/* Replaces the address of a service by that of an endpoint when a TCP socket connects.
 *
 * The programs belong to the root of cgroup2, so that every process of the machine passes them. A frontend that the
 * maps do not know is left as it is: the nftables table translates its packets. Only TCP: a connected UDP socket would
 * stay with an endpoint that is gone.
 *
 * Addresses and ports are in network byte order. types.py has the same layouts. tools/bpf-object compiles this file.
 */
#include <linux/bpf.h>

#define SECTION(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))

#define TCP 6
#define MAPPED 0xffff0000u /* the third word of ::ffff:0:0/96, as a little-endian machine loads it */

/* Numbers of enum bpf_func_id (include/uapi/linux/bpf.h). */
static void *(*const lookup)(void *map, const void *key) = (void *)1;
static __u32 (*const random_number)(void) = (void *)7;
static void *(*const storage)(void *map, void *sk, void *value, __u64 flags) = (void *)107;
static long (*const forget)(void *map, void *sk) = (void *)108;
static __u64 (*const netns_cookie)(void *ctx) = (void *)122;

struct address4 { __u32 ip; __u16 port; __u16 pad; };
struct address6 { __u32 ip[4]; __u16 port; __u16 pad; };
/* Its endpoints are `count` slots from `first` on; `id` is its counter. */
struct frontend { __u32 first; __u32 count; __u32 id; };
/* What a socket asked for. An IPv4 address is the last word, also of a v4-mapped one: a socket can change from IPv6
 * to IPv4 (IPV6_ADDRFORM).
 */
struct asked { __u32 ip[4]; __u16 port; __u16 pad; };

/* Relocations name these; the user side makes the maps. */
struct map { __u32 type, key, value, entries, flags; };
#define MAP(name, kind, key, value, entries, flags) \
	struct map name SECTION("maps") = { kind, key, value, entries, flags }

MAP(frontends4, BPF_MAP_TYPE_HASH, sizeof(struct address4), sizeof(struct frontend), 1, BPF_F_NO_PREALLOC);
MAP(slots4, BPF_MAP_TYPE_ARRAY, sizeof(__u32), sizeof(struct address4), 1, BPF_F_MMAPABLE);
MAP(frontends6, BPF_MAP_TYPE_HASH, sizeof(struct address6), sizeof(struct frontend), 1, BPF_F_NO_PREALLOC);
MAP(slots6, BPF_MAP_TYPE_ARRAY, sizeof(__u32), sizeof(struct address6), 1, BPF_F_MMAPABLE);
MAP(connections, BPF_MAP_TYPE_PERCPU_ARRAY, sizeof(__u32), sizeof(__u64), 1, 0);
MAP(settings, BPF_MAP_TYPE_ARRAY, sizeof(__u32), sizeof(__u64), 1, 0);
MAP(asked, BPF_MAP_TYPE_SK_STORAGE, sizeof(int), sizeof(struct asked), 0, BPF_F_NO_PREALLOC);

/* Whether the socket belongs to a network namespace that is not served. */
INLINE int elsewhere(struct bpf_sock_addr *ctx)
{
	__u32 first = 0;
	__u64 *only = lookup(&settings, &first);

	return only && *only && netns_cookie(ctx) != *only;
}

INLINE __u32 port_of(struct bpf_sock_addr *ctx)
{
	volatile __u32 port = ctx->user_port; /* a load of four bytes, which the verifier wants */

	return port;
}

INLINE void remember(struct bpf_sock_addr *ctx, struct asked *what)
{
	struct bpf_sock *sk = ctx->sk;
	struct asked *kept;

	if (!sk)
		return;
	kept = storage(&asked, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (kept)
		*kept = *what;
}

INLINE void forget_former(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	if (sk)
		forget(&asked, sk);
}

/* The parts of a slot of IPv4, as a little-endian machine loads it. */
INLINE __u32 slot_ip(__u64 slot)
{
	return slot;
}

INLINE __u16 slot_port(__u64 slot)
{
	return slot >> 32;
}

INLINE void count(struct frontend *frontend)
{
	__u32 id = frontend->id;
	__u64 *number = lookup(&connections, &id);

	if (number)
		*number += 1;
}

/* An endpoint, as its slot has it; 0 if there is none. A slot may be replaced at any moment, by one store: so it is
 * read once, by one load. Slots of IPv6 are written only while no frontend refers to them.
 */
INLINE __u64 endpoint4(struct bpf_sock_addr *ctx, __u32 ip)
{
	struct address4 key = { .ip = ip, .port = port_of(ctx) };
	struct frontend *frontend = lookup(&frontends4, &key);
	volatile __u64 *found;
	__u64 chosen;
	__u32 slot, number;

	if (!frontend || elsewhere(ctx))
		return 0;
	number = frontend->count;
	if (!number)
		return 0;
	slot = frontend->first + random_number() % number;
	found = lookup(&slots4, &slot);
	if (!found)
		return 0;
	chosen = *found;
	if (!slot_port(chosen))
		return 0;
	count(frontend);
	return chosen;
}

INLINE struct address6 *endpoint6(struct bpf_sock_addr *ctx, struct address6 *key)
{
	struct frontend *frontend = lookup(&frontends6, key);
	struct address6 *chosen;
	__u32 slot, number;

	if (!frontend || elsewhere(ctx))
		return 0;
	number = frontend->count;
	if (!number)
		return 0;
	slot = frontend->first + random_number() % number;
	chosen = lookup(&slots6, &slot);
	if (!chosen || !chosen->port)
		return 0;
	count(frontend);
	return chosen;
}

SECTION("cgroup/connect4") int connect4(struct bpf_sock_addr *ctx)
{
	struct asked what = { .ip = { 0, 0, MAPPED, ctx->user_ip4 }, .port = port_of(ctx) };
	__u64 chosen;

	if (ctx->protocol != TCP)
		return 1;
	chosen = endpoint4(ctx, what.ip[3]);
	if (!chosen) {
		forget_former(ctx);
		return 1;
	}
	remember(ctx, &what);
	ctx->user_ip4 = slot_ip(chosen);
	ctx->user_port = slot_port(chosen);
	return 1;
}

SECTION("cgroup/connect6") int connect6(struct bpf_sock_addr *ctx)
{
	struct asked what = {
		.ip = { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] },
		.port = port_of(ctx),
	};

	if (ctx->protocol != TCP)
		return 1;
	if (!what.ip[0] && !what.ip[1] && what.ip[2] == MAPPED) {
		__u64 chosen = endpoint4(ctx, what.ip[3]);

		if (chosen) {
			remember(ctx, &what);
			ctx->user_ip6[3] = slot_ip(chosen);
			ctx->user_port = slot_port(chosen);
			return 1;
		}
	} else {
		struct address6 key = { .ip = { what.ip[0], what.ip[1], what.ip[2], what.ip[3] }, .port = what.port };
		struct address6 *chosen = endpoint6(ctx, &key);

		if (chosen) {
			remember(ctx, &what);
			ctx->user_ip6[0] = chosen->ip[0];
			ctx->user_ip6[1] = chosen->ip[1];
			ctx->user_ip6[2] = chosen->ip[2];
			ctx->user_ip6[3] = chosen->ip[3];
			ctx->user_port = chosen->port;
			return 1;
		}
	}
	forget_former(ctx);
	return 1;
}

/* The address that the process asked for, so that it finds the peer that it expects. */
SECTION("cgroup/getpeername4") int getpeername4(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct asked *kept = sk && ctx->protocol == TCP ? storage(&asked, sk, 0, 0) : 0;

	if (kept) {
		ctx->user_ip4 = kept->ip[3];
		ctx->user_port = kept->port;
	}
	return 1;
}

SECTION("cgroup/getpeername6") int getpeername6(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct asked *kept = sk && ctx->protocol == TCP ? storage(&asked, sk, 0, 0) : 0;

	if (kept) {
		ctx->user_ip6[0] = kept->ip[0];
		ctx->user_ip6[1] = kept->ip[1];
		ctx->user_ip6[2] = kept->ip[2];
		ctx->user_ip6[3] = kept->ip[3];
		ctx->user_port = kept->port;
	}
	return 1;
}

char licence[] SECTION("license") = "Dual BSD/GPL";
