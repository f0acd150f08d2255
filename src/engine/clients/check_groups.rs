//! Checks that memberships, members and what is counted of them agree (promise 23).

use std::collections::BTreeSet;

use crate::engine::clients::Clients;
use crate::engine::clients::session::Session;

impl Clients {
    /// Checks that each member is a session that knows of it, and the other way; the error names
    /// two that do not agree. Costs a pass over everything.
    pub(crate) fn check_groups(&self) -> Result<(), String> {
        let mut found = BTreeSet::new();
        let attached = self.conns.iter().map(|(_, conn)| &*conn.session);
        for session in attached.chain(self.sessions.iter_away()) {
            self.check_memberships(session, &mut found)?;
        }
        let mut members = 0;
        self.check_rosters()?;
        let mut bytes = self.groups.homes().map(|(_, home)| home.bytes()).sum::<usize>();
        for (key, group) in self.groups.iter() {
            members += group.members().len();
            bytes += group.bytes();
            for (index, member) in (0u32..).zip(group.members()) {
                if !found.contains(&(key, index)) {
                    return Err(format!("{member:?} of {:?} is no membership", group.name));
                }
                if member.at > group.log.end() {
                    return Err(format!("{member:?} is beyond {}", group.log.end()));
                }
            }
        }
        let counted = (self.groups.memberships, self.groups.log_bytes);
        match (members, bytes) == counted && members == found.len() {
            true => Ok(()),
            false => Err(format!("members and bytes {counted:?}, in truth {members}, {bytes}")),
        }
    }

    fn check_memberships(
        &self,
        session: &Session,
        found: &mut BTreeSet<(crate::ids::GroupKey, u32)>,
    ) -> Result<(), String> {
        for (slot, membership) in session.groups.as_deref().into_iter().flat_map(|all| all.iter()) {
            let group = self.groups.get(membership.group);
            let member = group.and_then(|group| group.members().get(membership.index as usize));
            if member.is_none_or(|member| (member.session, member.slot) != (session.key, slot)) {
                return Err(format!("{:?}: {membership:?} is {member:?}", session.key));
            }
            found.insert((membership.group, membership.index));
        }
        Ok(())
    }
}
