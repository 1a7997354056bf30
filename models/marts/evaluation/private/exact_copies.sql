-- One row per person of a cohort that poses as synthetic and real person of the
-- training or the holdout with the same history, where that has ten events or more:
-- each is to be looked at by hand.
with

keys as (

    select * from {{ ref('history_keys') }}
    where event_count >= 10

),

final as (

    select
        copies.cohort,
        copies.person_id,
        originals.cohort as original_cohort,
        originals.person_id as original_person_id,
        copies.event_count
    from keys as copies
    inner join keys as originals on copies.history_key = originals.history_key
    where
        originals.cohort in ('train', 'holdout')
        and copies.cohort not in ('train', 'holdout')

)

select * from final
