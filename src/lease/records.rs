//! The records of a store by name, in order. They are read from end to end with each request, and change seldom: a vector is read quickest.

use super::yielding::Tallied;

/// The slots that are lent to one process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loan {
    pub granted: u64,
    pub wished: u64,
    pub until: u64,
    pub number: u64,
    pub limit: u64,
    /// When its turn began, or since when it waits for one.
    pub since: u64,
    pub pool: u64,
    pub tallied: Tallied,
    /// When its process was told to ask again, by the clock of the store; 0 for not before it has something to say.
    pub asks_at: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records(Vec<(String, Loan)>);

impl Records {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn get(&self, name: &str) -> Option<&Loan> {
        self.place(name).ok().map(|at| &self.0[at].1)
    }

    pub fn get_mut(&mut self, name: &str) -> Option<&mut Loan> {
        self.place(name).ok().map(|at| &mut self.0[at].1)
    }

    pub fn insert(&mut self, name: String, loan: Loan) {
        match self.place(&name) {
            Ok(at) => self.0[at].1 = loan,
            Err(at) => self.0.insert(at, (name, loan)),
        }
    }

    pub fn remove(&mut self, name: &str) {
        if let Ok(at) = self.place(name) {
            self.0.remove(at);
        }
    }

    pub fn retain(&mut self, keep: impl Fn(&Loan) -> bool) {
        self.0.retain(|(_, loan)| keep(loan));
    }

    pub fn iter(&self) -> impl Iterator<Item = (&String, &Loan)> {
        self.0.iter().map(|(name, loan)| (name, loan))
    }

    pub fn values(&self) -> impl Iterator<Item = &Loan> {
        self.0.iter().map(|(_, loan)| loan)
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Loan> {
        self.0.iter_mut().map(|(_, loan)| loan)
    }

    /// Where it is, or belongs.
    fn place(&self, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(other, _)| other.as_str().cmp(name))
    }
}
