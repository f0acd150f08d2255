//! The instances as one shard sees them: their queues, calls in flight and links.

use crate::config::snapshot::{Mode, Snapshot};
use crate::engine::queue::InstanceQueue;
use crate::ids::{InstanceId, ServiceId};
use crate::stats::InstanceReport;

/// State of the connection to an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// No attempt has failed yet: calls wait for the connection.
    Connecting,
    /// Connected.
    Up,
    /// The last attempt failed: its keys go to the next instance.
    Down,
}

/// One instance.
#[derive(Debug)]
pub struct InstanceState {
    /// Its service.
    pub service: ServiceId,
    /// How it is called.
    pub mode: Mode,
    /// Connection.
    pub link: Link,
    /// Whether the snapshot in force names it.
    pub present: bool,
    /// What waits for it.
    pub queue: InstanceQueue,
    /// Calls in flight.
    pub in_flight: usize,
    /// A call ended since the last batch left: what waits may leave.
    pub slot_freed: bool,
    /// On the list of instances to look at.
    pub touched: bool,
    /// Messages answered OK.
    pub ok: u64,
    /// Messages failed.
    pub failed: u64,
}

/// All instances, by id.
#[derive(Debug, Default)]
pub struct Instances {
    states: Vec<Option<InstanceState>>,
    /// Rises when an instance comes, goes, or changes its link: streams then look whether they are
    /// where they belong.
    pub epoch: u64,
}

impl Instances {
    /// Those of `snapshot`.
    pub fn new(snapshot: &Snapshot) -> Self {
        let mut instances = Self::default();
        instances.adopt(snapshot);
        instances
    }

    /// Adds those that are new, marks those that are gone. A state lives on until its id is known
    /// to be unused; ids are never given to another instance.
    pub fn adopt(&mut self, snapshot: &Snapshot) {
        self.epoch += 1;
        for state in self.states.iter_mut().flatten() {
            state.present = false;
        }
        for instance in &snapshot.instances {
            let index = instance.id.0 as usize;
            if self.states.len() <= index {
                self.states.resize_with(index + 1, || None);
            }
            let state = self.states[index].get_or_insert_with(|| InstanceState {
                service: instance.service,
                mode: Mode::Batch,
                link: Link::Connecting,
                present: true,
                queue: InstanceQueue::default(),
                in_flight: 0,
                slot_freed: false,
                touched: false,
                ok: 0,
                failed: 0,
            });
            state.present = true;
            state.service = instance.service;
            state.mode = snapshot.services[instance.service.0 as usize].mode;
        }
    }

    /// One that some snapshot named.
    pub fn get(&self, id: InstanceId) -> &InstanceState {
        let state = self.states.get(id.0 as usize).and_then(Option::as_ref);
        state.expect("instance ids come from snapshots")
    }

    /// See [`Self::get`].
    pub fn get_mut(&mut self, id: InstanceId) -> &mut InstanceState {
        let state = self.states.get_mut(id.0 as usize).and_then(Option::as_mut);
        state.expect("instance ids come from snapshots")
    }

    /// Whether messages may be given to it.
    pub fn is_usable(&self, id: InstanceId) -> bool {
        let state = self.get(id);
        state.present && state.link != Link::Down
    }

    /// All that some snapshot named, by id.
    pub fn iter(&self) -> impl Iterator<Item = (InstanceId, &InstanceState)> {
        let known = self.states.iter().enumerate();
        known.filter_map(|(index, state)| Some((InstanceId(index as u32), state.as_ref()?)))
    }

    /// See [`Self::iter`].
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (InstanceId, &mut InstanceState)> {
        let known = self.states.iter_mut().enumerate();
        known.filter_map(|(index, state)| Some((InstanceId(index as u32), state.as_mut()?)))
    }

    /// For statistics.
    pub fn report(&self) -> Vec<InstanceReport> {
        self.iter()
            .map(|(instance, state)| InstanceReport {
                instance,
                connected: state.link == Link::Up,
                waiting: state.queue.items as u64,
                in_flight: state.in_flight as u64,
                ok: state.ok,
                failed: state.failed,
            })
            .collect()
    }
}
