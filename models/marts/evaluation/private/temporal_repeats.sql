-- One row per person and lag: the pairs of visits so far apart, and the sum of their
-- Jaccard indices (concepts that both have, of those that either has). A pair of which
-- neither has a concept has none.
with

visits as (

    select * from {{ ref('temporal_visits') }}

),

concepts as (

    select
        visit_number,
        -- one key: two would be joined by concept alone, and there are many of each
        visit_number * 1000000 + concept_number as visit_concept
    from {{ ref('temporal_visit_concepts') }}

),

sizes as (

    select
        visit_number,
        count(*) as concepts
    from concepts
    group by 1

),

lags as (
    select 1 as visit_lag
    union all
    select 2 as visit_lag
    union all
    select 5 as visit_lag
    union all
    select 10 as visit_lag
    union all
    select 20 as visit_lag

),

sought as (

    select
        concepts.visit_number,
        lags.visit_lag,
        concepts.visit_concept + lags.visit_lag * 1000000 as visit_concept
    from concepts
    cross join lags

),

shared as (

    select
        sought.visit_number,
        sought.visit_lag,
        count(*) as concepts
    from sought
    inner join concepts on sought.visit_concept = concepts.visit_concept
    group by 1, 2

),

pairs as (

    select
        visits.cohort,
        visits.person_number,
        visits.visit_number,
        lags.visit_lag
    from visits
    cross join lags
    where visits.visit_order + lags.visit_lag <= visits.visit_count

),

counted as (

    select
        pairs.cohort,
        pairs.person_number,
        pairs.visit_lag,
        coalesce(shared.concepts, 0) as shared_concepts,
        coalesce(earlier.concepts, 0) + coalesce(later.concepts, 0) as concepts
    from pairs
    left join sizes as earlier on pairs.visit_number = earlier.visit_number
    left join sizes as later
        on pairs.visit_number + pairs.visit_lag = later.visit_number
    -- numbers go on beyond a person, pairs do not
    left join shared
        on
            pairs.visit_number = shared.visit_number
            and pairs.visit_lag = shared.visit_lag

),

final as (

    select
        cohort,
        person_number,
        visit_lag,
        count(*) as pairs,
        sum(shared_concepts / cast(concepts - shared_concepts as double)) as jaccard
    from counted
    where concepts > 0
    group by 1, 2, 3

)

select * from final
