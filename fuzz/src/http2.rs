//! HTTP/2, from the beginning or not: whatever is sent does no harm, and how it is cut makes no
//! difference.

use protocol::{Decoder, Http2};

use crate::connection::{self, Step, in_parts, is_complete, steps};
use crate::http1::{assert_same, decoded};

/// Options (bit 0: first seen in the middle; the others: how to cut), and steps.
pub fn run(bytes: &[u8]) {
    let Some((&options, bytes)) = bytes.split_first() else {
        return;
    };
    let steps = steps(bytes);
    let decoder = || -> Box<dyn Decoder> {
        Box::new(match options & 1 {
            0 => Http2::new(),
            _ => Http2::joined(),
        })
    };
    let all = decoded(&mut *decoder(), &steps);
    if is_complete(&steps) {
        let length = usize::from(options >> 1) + 1;
        let cut = decoded(&mut *decoder(), &in_parts(&steps, length));
        assert_same(&all, &cut);
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let connection = connection::http2();
    let whole: Vec<_> = connection
        .iter()
        .map(|(server, bytes)| Step::Data(*server, bytes))
        .collect();
    let mut seeds = vec![
        [&[0], &connection::input(&whole)[..]].concat(),
        [&[8], &connection::input(&whole)[..]].concat(),
        [&[1], &connection::input(&whole[2..])[..]].concat(),
    ];
    for lost in 0..connection.len() {
        let mut steps = whole.clone();
        let (server, bytes) = &connection[lost];
        let (before, behind) = bytes.split_at(bytes.len() / 2);
        steps[lost] = Step::Lost(*server, before);
        steps.insert(lost + 1, Step::Data(*server, behind));
        seeds.push([&[0], &connection::input(&steps)[..]].concat());
        seeds.push([&[1], &connection::input(&steps)[..]].concat());
    }
    seeds
}
