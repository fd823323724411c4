//! How much memory conversations may hold: an account for each connection within one for all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Limits of what is held of HTTP exchanges, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of each body and each message, as sent and again decoded.
    pub body: usize,
    /// Of all open exchanges of a connection.
    pub connection: usize,
    /// Of all open exchanges of all connections.
    pub total: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self::with_body(1 << 20)
    }
}

impl Limits {
    /// Limits under which bodies of `body` bytes fit: 16 MiB for a connection and 64 MiB in total, or
    /// more if single bodies may need it.
    pub fn with_body(body: usize) -> Self {
        Self {
            body,
            connection: body.saturating_mul(2).max(16 << 20),
            total: body.saturating_mul(4).max(64 << 20),
        }
    }
}

/// An account that memory is taken from, and goes back to.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Account>);

#[derive(Debug)]
struct Account {
    limit: usize,
    used: AtomicUsize,
    parent: Option<Budget>,
}

impl Budget {
    /// An account of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self::within(limit, None)
    }

    /// An account of `limit` bytes, which also count in this one.
    pub fn part(&self, limit: usize) -> Self {
        Self::within(limit, Some(self.clone()))
    }

    fn within(limit: usize, parent: Option<Self>) -> Self {
        let used = AtomicUsize::new(0);
        Self(Arc::new(Account {
            limit,
            used,
            parent,
        }))
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Takes `bytes`, or nothing if that would be too much.
    fn take(&self, bytes: usize) -> bool {
        let account = &*self.0;
        let fits = |used: usize| used.checked_add(bytes).filter(|&sum| sum <= account.limit);
        let order = Ordering::Relaxed;
        if account.used.fetch_update(order, order, fits).is_err() {
            return false;
        }
        let granted = account.parent.as_ref().is_none_or(|up| up.take(bytes));
        if !granted {
            account.used.fetch_sub(bytes, order);
        }
        granted
    }

    fn give_back(&self, bytes: usize) {
        self.0.used.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(parent) = &self.0.parent {
            parent.give_back(bytes);
        }
    }
}

/// Memory taken from a [`Budget`], which goes back to it with this value.
#[derive(Debug)]
pub(crate) struct Reservation {
    budget: Budget,
    bytes: usize,
}

impl Reservation {
    /// Nothing yet.
    pub(crate) fn none(budget: &Budget) -> Self {
        Self {
            budget: budget.clone(),
            bytes: 0,
        }
    }

    /// Takes `bytes` more, and says whether that was granted.
    #[must_use]
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        let granted = self.budget.take(bytes);
        if granted {
            self.bytes += bytes;
        }
        granted
    }
}

impl Reservation {
    /// Takes more or gives back, until this stands for `bytes`, and says whether that was granted.
    #[must_use]
    pub(crate) fn resize(&mut self, bytes: usize) -> bool {
        if let Some(less) = self.bytes.checked_sub(bytes) {
            self.budget.give_back(less);
            self.bytes = bytes;
            return true;
        }
        self.grow(bytes - self.bytes)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

/// Bytes in memory that was granted.
#[derive(Debug)]
pub(crate) struct Kept {
    bytes: Vec<u8>,
    reservation: Reservation,
}

impl Kept {
    pub(crate) fn new(budget: &Budget) -> Self {
        Self {
            bytes: Vec::new(),
            reservation: Reservation::none(budget),
        }
    }

    /// Takes over bytes, or their first ones if not all are granted.
    pub(crate) fn of(mut bytes: Vec<u8>, budget: &Budget) -> Self {
        bytes.shrink_to_fit();
        let mut reservation = Reservation::none(budget);
        if !reservation.grow(bytes.capacity()) {
            bytes = Vec::new();
        }
        Self { bytes, reservation }
    }

    /// Appends as many bytes as the budget and the limit for the whole permit, and returns how many.
    pub(crate) fn push(&mut self, bytes: &[u8], limit: usize) -> usize {
        let room = limit.saturating_sub(self.bytes.len());
        let wanted = &bytes[..bytes.len().min(room)];
        let granted = &wanted[..wanted.len().min(self.make_room(wanted.len(), limit))];
        self.bytes.extend_from_slice(granted);
        granted.len()
    }

    /// Makes room for `more` bytes, in steps that double, and returns for how many there is room.
    fn make_room(&mut self, more: usize, limit: usize) -> usize {
        let (length, capacity) = (self.bytes.len(), self.bytes.capacity());
        let needed = length + more;
        if needed > capacity {
            let doubled = needed.max(capacity.saturating_mul(2).min(limit));
            for wanted in [doubled, needed] {
                if self.reservation.grow(wanted - capacity) {
                    self.bytes.reserve_exact(wanted - length);
                    break;
                }
            }
        }
        self.bytes.capacity() - length
    }
}

impl std::ops::Deref for Kept {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_can_be_taken_again() {
        let all = Budget::new(100);
        let one = all.part(80);
        let mut kept = Kept::new(&one);
        assert_eq!(kept.push(&[1; 50], 1000), 50);
        assert_eq!((one.used(), all.used()), (50, 50));
        assert_eq!(kept.push(&[2; 50], 1000), 0, "the connection's limit");
        assert_eq!(Kept::new(&all.part(80)).push(&[3; 60], 1000), 0, "all's");
        drop(kept);
        assert_eq!((one.used(), all.used()), (0, 0));
    }

    #[test]
    fn no_more_is_kept_than_the_limit() {
        let budget = Budget::new(1000);
        let mut kept = Kept::new(&budget);
        for _ in 0..20 {
            kept.push(&[7; 9], 100);
        }
        assert_eq!((kept.len(), budget.used()), (100, 100));
    }
}
