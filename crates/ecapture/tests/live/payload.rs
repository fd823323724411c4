//! The bytes that `exchange` sends: the same function as in its payload.go.

/// The first `length` bytes that `sender` ("client" or "server") sends on a connection: messages of
/// these sizes, over and over.
pub(crate) fn stream(sender: &str, connection: u64, sizes: &[u64], length: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, &size) in (0..).zip(sizes.iter().cycle()) {
        if bytes.len() as u64 >= length {
            break;
        }
        bytes.extend(message(sender, connection, number, size));
    }
    bytes.truncate(length as usize);
    bytes
}

fn message(sender: &str, connection: u64, number: u64, size: u64) -> Vec<u8> {
    const SEED: u64 = 1;
    let first_letter = u64::from(sender.as_bytes()[0]);
    let mut state = SEED;
    for part in [sender.len() as u64, first_letter, connection, number, size] {
        state = mix(state ^ part.wrapping_mul(GOLDEN));
    }
    let mut bytes = Vec::with_capacity(size as usize + 8);
    while (bytes.len() as u64) < size {
        state = state.wrapping_add(GOLDEN);
        bytes.extend(mix(state).to_le_bytes());
    }
    bytes.truncate(size as usize);
    bytes
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of splitmix64.
fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
