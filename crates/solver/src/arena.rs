//! Places for vertices and edges, named by small copyable ids that never mean something else later.

use std::marker::PhantomData;
use std::ops::{Index, IndexMut};

/// The name of a place. `K` keeps ids of different arenas apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id<K> {
    slot: u32,
    generation: u32,
    kind: PhantomData<K>,
}

/// Values by id.
pub(crate) struct Arena<K, T> {
    slots: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
    kind: PhantomData<K>,
}

impl<K, T> Arena<K, T> {
    pub(crate) fn new() -> Self {
        Arena { slots: Vec::new(), free: Vec::new(), kind: PhantomData }
    }

    pub(crate) fn insert(&mut self, value: T) -> Id<K> {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 vertices fit into memory")
        });
        let (generation, place) = &mut self.slots[slot as usize];
        *place = Some(value);
        Id { slot, generation: *generation, kind: PhantomData }
    }

    pub(crate) fn remove(&mut self, id: Id<K>) -> Option<T> {
        let (generation, place) = &mut self.slots[id.slot as usize];
        if *generation != id.generation {
            return None;
        }
        *generation += 1;
        self.free.push(id.slot);
        place.take()
    }

    pub(crate) fn get(&self, id: Id<K>) -> Option<&T> {
        let (generation, place) = self.slots.get(id.slot as usize)?;
        place.as_ref().filter(|_| *generation == id.generation)
    }

    pub(crate) fn get_mut(&mut self, id: Id<K>) -> Option<&mut T> {
        let (generation, place) = self.slots.get_mut(id.slot as usize)?;
        place.as_mut().filter(|_| *generation == id.generation)
    }

    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().filter_map(|(_, value)| value.as_ref())
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

impl<K, T> Index<Id<K>> for Arena<K, T> {
    type Output = T;

    fn index(&self, id: Id<K>) -> &T {
        self.get(id).expect("ids of removed things are asked for with `get` only")
    }
}

impl<K, T> IndexMut<Id<K>> for Arena<K, T> {
    fn index_mut(&mut self, id: Id<K>) -> &mut T {
        self.get_mut(id).expect("ids of removed things are asked for with `get` only")
    }
}
