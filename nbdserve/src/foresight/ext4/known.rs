//! The directories and files whose inodes have passed by, as many as there is room for.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;

use super::inode::{Inode, Map, Node, Sort};

/// Directories, and files, that are kept: the inodes of 8 MiB of tables, a few MiB of memory.
const MOST: usize = 1 << 14;
/// Nodes of one file or directory that are recognised, beyond those that its inode names.
const MOST_NODES: usize = 64;
/// Places of such nodes that are kept.
const MOST_NODE_PLACES: usize = 1 << 14;

/// What was learnt.
#[derive(Debug, Default)]
pub(super) struct Known {
    directories: Shelf,
    files: Shelf,
    /// By first blocks and nodes.
    places: HashMap<u64, Place>,
    /// Nodes that nodes have named, the oldest first.
    deep: VecDeque<u64>,
}

/// Whose block it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) ino: u32,
    pub(super) is_dir: bool,
    /// `None` for the first block with contents.
    pub(super) node: Option<Sort>,
}

/// A directory or a file.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) map: Map,
    /// When it was last hinted at.
    pub(super) told: Option<u64>,
    /// That was a guess, of which it is not known yet whether it was right.
    pub(super) is_guess: bool,
}

/// By inode number; the one that was there first goes first.
#[derive(Debug, Default)]
struct Shelf {
    bodies: BTreeMap<u32, Body>,
    order: VecDeque<u32>,
}

impl Body {
    fn new(map: Map) -> Self {
        Self {
            map,
            told: None,
            is_guess: false,
        }
    }
}

impl Known {
    /// An inode that was read. One that is known already is the same unless its blocks moved.
    pub(super) fn add(&mut self, ino: u32, inode: Inode) {
        let Inode { is_dir, mut map } = inode;
        let shelf = if is_dir {
            &mut self.directories
        } else {
            &mut self.files
        };
        if shelf.bodies.get(&ino).is_some_and(|body| body.map == map) {
            return;
        }
        // There will be thousands of them.
        map.runs.shrink_to_fit();
        map.nodes.shrink_to_fit();
        let new = place_keys(&map, ino, is_dir).collect::<Vec<_>>();
        for gone in shelf.put(ino, Body::new(map)) {
            for (block, place) in place_keys(&gone.1.map, gone.0, is_dir) {
                // Another may claim the block by now.
                if self.places.get(&block) == Some(&place) {
                    self.places.remove(&block);
                }
            }
        }
        self.places.extend(new);
    }

    /// Nodes that a node of `ino` has named.
    pub(super) fn add_nodes(&mut self, ino: u32, is_dir: bool, nodes: &[Node]) {
        for node in nodes.iter().take(MOST_NODES) {
            if self.places.contains_key(&node.block) {
                continue;
            }
            if self.deep.len() >= MOST_NODE_PLACES
                && let Some(oldest) = self.deep.pop_front()
            {
                self.places.remove(&oldest);
            }
            self.deep.push_back(node.block);
            let node_of = Place {
                ino,
                is_dir,
                node: Some(node.sort),
            };
            self.places.insert(node.block, node_of);
        }
    }

    /// What begins or goes on at `block`.
    pub(super) fn at(&self, block: u64) -> Option<Place> {
        self.places.get(&block).copied()
    }

    pub(super) fn directory(&self, ino: u32) -> Option<&Body> {
        self.directories.bodies.get(&ino)
    }

    /// Directories among the next `count` inodes.
    pub(super) fn directories_after(
        &self,
        ino: u32,
        count: u32,
    ) -> impl Iterator<Item = (u32, &Body)> {
        let range = (
            Bound::Excluded(ino),
            Bound::Included(ino.saturating_add(count)),
        );
        // An empty range that excludes both ends would panic.
        let bodies = (ino < u32::MAX).then(|| self.directories.bodies.range(range));
        bodies.into_iter().flatten().map(|(ino, body)| (*ino, body))
    }

    pub(super) fn note_told(&mut self, ino: u32, clock: u64, is_guess: bool) {
        if let Some(body) = self.directories.bodies.get_mut(&ino) {
            body.told = Some(clock);
            body.is_guess = is_guess;
        }
    }

    /// Notes that directory `ino` is read; whether that had been guessed.
    pub(super) fn note_read(&mut self, ino: u32) -> bool {
        let body = self.directories.bodies.get_mut(&ino);
        body.is_some_and(|body| std::mem::take(&mut body.is_guess))
    }

    pub(super) fn file(&self, ino: u32) -> Option<&Map> {
        self.files.bodies.get(&ino).map(|body| &body.map)
    }
}

impl Shelf {
    /// Puts a body there; what had to go for it.
    fn put(&mut self, ino: u32, body: Body) -> Vec<(u32, Body)> {
        let mut gone = Vec::new();
        if let Some(old) = self.bodies.insert(ino, body) {
            gone.push((ino, old));
        } else {
            self.order.push_back(ino);
        }
        if self.order.len() > MOST
            && let Some(oldest) = self.order.pop_front()
            && let Some(old) = self.bodies.remove(&oldest)
        {
            gone.push((oldest, old));
        }
        gone
    }
}

/// The blocks by which a map is recognised.
fn place_keys(map: &Map, ino: u32, is_dir: bool) -> impl Iterator<Item = (u64, Place)> {
    let first = map.runs.first().map(|run| (run.start, None));
    let nodes = map.nodes.iter().map(|node| (node.block, Some(node.sort)));
    let all = first.into_iter().chain(nodes);
    all.map(move |(block, node)| (block, Place { ino, is_dir, node }))
}
