//! What a caller may do.

use super::callers::Caller;
use super::refusal::Refused;
use super::tally::kind_name;
use crate::config::settings::{PushTo, PushVerb};
use crate::message::{Priority, Reason};
use crate::wire::push::Target;

fn forbidden(why: String) -> Refused {
    Refused::new(Reason::Forbidden, why)
}

/// The kind of addressees, as rights name it.
pub fn kind(to: &Target) -> PushTo {
    match to {
        Target::Sessions(_) => PushTo::Session,
        Target::Users(_) => PushTo::User,
        Target::Groups(_) => PushTo::Group,
        Target::Tenant => PushTo::Tenant,
        Target::Everyone => PushTo::Everyone,
    }
}

impl Caller {
    /// Whether it may do this to anybody of `tenant`, whose name is empty if there is one only.
    pub fn may(&self, verb: PushVerb, tenant: &str) -> Result<(), Refused> {
        if !self.rights.may.contains(&verb) {
            let word = match verb {
                PushVerb::Push => "push",
                PushVerb::Join => "join",
                PushVerb::Read => "read",
                PushVerb::Disconnect => "disconnect",
            };
            return Err(forbidden(format!(
                "`may` of this caller has no {word:?}: add it to its [[push_caller]]"
            )));
        }
        match self.rights.has_tenant(tenant) {
            true => Ok(()),
            false => Err(forbidden(
                "`tenants` of this caller has not the tenant: add it to its [[push_caller]]".into(),
            )),
        }
    }

    /// Whether it may push to, read of, or change this group of a tenant that it may.
    pub fn may_group(&self, group: &str) -> Result<(), Refused> {
        match self.rights.has_group(group) {
            true => Ok(()),
            false => Err(forbidden(
                "`groups` of this caller has no pattern of the group: add one to its \
                 [[push_caller]]"
                    .into(),
            )),
        }
    }

    /// Whether it may push to these addressees of `tenant`. Everyone are those of all tenants.
    pub fn may_push(&self, to: &Target, tenant: &str) -> Result<(), Refused> {
        match to {
            Target::Everyone => {
                let tenants = &self.rights.tenants;
                if !tenants.iter().any(|pattern| &*pattern.0 == "*") {
                    return Err(forbidden(
                        "everyone is all tenants: `tenants` of this caller is not [\"*\"]".into(),
                    ));
                }
                // A name that only `*` has.
                self.may(PushVerb::Push, "")?;
            }
            Target::Sessions(_) | Target::Users(_) | Target::Groups(_) | Target::Tenant => {
                self.may(PushVerb::Push, tenant)?;
            }
        }
        if !self.rights.to.contains(&kind(to)) {
            let word = kind_name(kind(to));
            return Err(forbidden(format!(
                "`to` of this caller has no {word:?}: add it to its [[push_caller]]"
            )));
        }
        match to {
            Target::Groups(groups) => {
                groups.iter().try_for_each(|group| self.may_group(&group.name))
            }
            Target::Sessions(_) | Target::Users(_) | Target::Tenant | Target::Everyone => Ok(()),
        }
    }

    /// The class of a push that asks for `asked`; without a wish, normal or the highest that the
    /// caller may have.
    pub fn class(&self, asked: Option<Priority>) -> Result<Priority, Refused> {
        let Some(asked) = asked else { return Ok(self.priority_max.max(Priority::Normal)) };
        // Classes are in the order of urgency, the most urgent first.
        match asked < self.priority_max {
            true => Err(forbidden(format!(
                "priority {} is above priority_max = {:?} of this caller",
                asked.name(),
                self.priority_max.name()
            ))),
            false => Ok(asked),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::{Pattern, PushRights};
    use crate::ids::TenantId;
    use crate::push::GroupName;

    fn caller(tenants: &[&str], to: &[PushTo], groups: &[&str]) -> Caller {
        let patterns = |list: &[&str]| list.iter().map(|one| Pattern((*one).into())).collect();
        let rights = PushRights {
            tenants: patterns(tenants),
            to: to.to_vec(),
            groups: patterns(groups),
            joins: Vec::new(),
            may: vec![PushVerb::Push],
        };
        Caller {
            name: "a".into(),
            hash: 1,
            rights,
            priority_max: Priority::High,
            pushes_per_s: 0,
            deliveries_per_s: 0,
        }
    }

    fn why(result: Result<(), Refused>) -> String {
        result.map_or_else(|refused| refused.why, |()| "may".into())
    }

    #[test]
    fn each_right_is_asked_for_and_named_when_it_is_missing() {
        let one = caller(&["acme"], &[PushTo::Group, PushTo::Everyone], &["room:*"]);
        let group = |name| Target::Groups(vec![GroupName::new(TenantId(1), name).expect("a name")]);
        assert_eq!(why(one.may_push(&group("room:7"), "acme")), "may");
        assert!(why(one.may_push(&group("lobby"), "acme")).contains("`groups`"));
        assert!(why(one.may_push(&group("room:7"), "other")).contains("`tenants`"));
        assert!(why(one.may_push(&Target::Tenant, "acme")).contains("`to`"));
        assert!(why(one.may_push(&Target::Everyone, "acme")).contains("all tenants"));
        assert!(why(one.may(PushVerb::Read, "acme")).contains("\"read\""));
        let all = caller(&["*"], &[PushTo::Everyone], &[]);
        assert_eq!(why(all.may_push(&Target::Everyone, "")), "may");
    }

    #[test]
    fn a_class_above_the_highest_is_refused_and_none_is_normal_or_the_highest() {
        let mut one = caller(&["*"], &[], &[]);
        assert_eq!(one.class(None), Ok(Priority::Normal));
        assert_eq!(one.class(Some(Priority::High)), Ok(Priority::High));
        assert!(one.class(Some(Priority::Critical)).is_err());
        one.priority_max = Priority::Low;
        assert_eq!(one.class(None), Ok(Priority::Low));
    }
}
